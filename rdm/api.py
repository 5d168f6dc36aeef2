"""What a member's file imports: one place, so that rebuilding the rooms breaks nobody's objective.

An objective, encoder, generator, metric, source or data set of yours or ours takes every name of rdm from here.
"""

from rdm.data.condition import Condition, Conditions, Law, Numbers, rows_of
from rdm.data.dataset import Data, Dataset, Part, Stored
from rdm.data.inputs import Inputs, images, tokens, waveforms
from rdm.data.source import Source, decode, is_grey
from rdm.errors import (
    CorruptFileError,
    InputError,
    MismatchError,
    NonFiniteError,
    UnknownNameError,
    first_line,
    printable,
)
from rdm.files.checkpoint import load_weights
from rdm.files.encoded import EncodedItems
from rdm.files.mapped import Table, open_table
from rdm.files.store import digest
from rdm.files.weights import hub_file, load_strictly, mismatches, read_weights
from rdm.generators.protocol import FlowGenerator, FlowMap, Generator, Solver, over
from rdm.judging.evaluation import Judge
from rdm.judging.ratio import Ratio
from rdm.matching.balance import Balance, SelfNormalized, Terms, Uniform
from rdm.matching.distances import median_distance, squared_distances
from rdm.matching.memory import EMA, Memory, NoMemory, Queue
from rdm.matching.metric import Distance, Estimate, Measure, Metric, Z, between, generated, of_groups, of_share
from rdm.matching.objective import Objective, Traits
from rdm.matching.real import Gaussian, Real, draw, thin
from rdm.matching.representation import Battery, Precision, Representation, assemble
from rdm.matching.statistic import Cat, Moments, Samples, Statistic, Sum, Summary, checked
from rdm.numbers import EDGE, Count, Fraction, Nonnegative, Positive, Range, Seed, Several, Size, Workers
from rdm.randomness import seeded, stream
from rdm.references.encoded import encoded
from rdm.references.landmarks import landmarks
from rdm.registry import (
    balances,
    batteries,
    conditions,
    conventions,
    datasets,
    evaluations,
    generators,
    memories,
    metrics,
    nearest,
    networks,
    objectives,
    representations,
    sources,
)
from rdm.trust import confined, refuse_if_confined, require

__all__ = [
    "Balance",
    "Battery",
    "Cat",
    "Condition",
    "Conditions",
    "CorruptFileError",
    "Count",
    "Data",
    "Dataset",
    "Distance",
    "EDGE",
    "EMA",
    "EncodedItems",
    "Estimate",
    "FlowGenerator",
    "FlowMap",
    "Fraction",
    "Gaussian",
    "Generator",
    "InputError",
    "Inputs",
    "Judge",
    "Law",
    "Measure",
    "Memory",
    "Metric",
    "MismatchError",
    "Moments",
    "NoMemory",
    "NonFiniteError",
    "Nonnegative",
    "Numbers",
    "Objective",
    "Part",
    "Positive",
    "Precision",
    "Queue",
    "Range",
    "Ratio",
    "Real",
    "Representation",
    "Samples",
    "Seed",
    "SelfNormalized",
    "Several",
    "Size",
    "Solver",
    "Source",
    "Statistic",
    "Stored",
    "Sum",
    "Summary",
    "Table",
    "Terms",
    "Traits",
    "Uniform",
    "UnknownNameError",
    "Workers",
    "Z",
    "assemble",
    "balances",
    "batteries",
    "between",
    "checked",
    "conditions",
    "confined",
    "conventions",
    "datasets",
    "decode",
    "digest",
    "draw",
    "encoded",
    "evaluations",
    "first_line",
    "generated",
    "generators",
    "hub_file",
    "images",
    "is_grey",
    "landmarks",
    "load_strictly",
    "load_weights",
    "median_distance",
    "memories",
    "metrics",
    "mismatches",
    "nearest",
    "networks",
    "objectives",
    "of_groups",
    "of_share",
    "over",
    "open_table",
    "printable",
    "read_weights",
    "refuse_if_confined",
    "representations",
    "require",
    "rows_of",
    "seeded",
    "sources",
    "squared_distances",
    "stream",
    "thin",
    "tokens",
    "waveforms",
]
