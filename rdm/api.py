"""What a member's file imports: one place, so that rebuilding the rooms breaks nobody's objective.

An objective, encoder, generator, metric, source or data set of yours or ours takes every name of rdm from here.
"""

from rdm.data.condition import Condition, Conditions, Law, Numbers, described, moved, rows_of
from rdm.data.dataset import Data, Dataset, Part, Stored
from rdm.data.feed import Rows, portion
from rdm.data.inputs import Inputs, images, tokens, waveforms
from rdm.data.mel import LogMel
from rdm.data.pictures import decode, is_grey
from rdm.data.sound import resample
from rdm.data.source import Source
from rdm.distributed import rank, total, world_size
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
from rdm.files.schema import anything, expect, mapped, record
from rdm.files.store import digest, write_text
from rdm.files.weights import FETCH, hub_file, load_strictly, mismatches, read_weights, sizes_alone
from rdm.generators.protocol import FlowGenerator, FlowMap, Generator, Solver, drawn, over, tried
from rdm.judging.evaluation import Judge
from rdm.judging.ratio import Ratio
from rdm.matching.balance import Balance, SelfNormalized, Terms, Uniform
from rdm.matching.distances import Samples, median_distance, squared_distances
from rdm.matching.memory import EMA, Memory, NoMemory, Queue
from rdm.matching.metric import Distance, Estimate, Measure, Metric, Z, between, generated, of_groups, of_share
from rdm.matching.objective import (
    UNDIVIDED,
    Follower,
    Objective,
    Portion,
    Seen,
    Solved,
    Starter,
    Traits,
    Transport,
    by_member,
)
from rdm.matching.real import Gaussian, Real, draw, thin
from rdm.matching.representation import Battery, Precision, Representation, assemble
from rdm.matching.statistic import Cat, Moments, Statistic, Sum, Summary, checked
from rdm.numbers import EDGE, Count, Float, Fraction, Nonnegative, Positive, Range, Seed, Several, Share, Size, Workers
from rdm.population.population import Population
from rdm.randomness import seeded, stream
from rdm.references.encoded import encoded
from rdm.references.file import Reference
from rdm.references.landmarks import landmarks
from rdm.registry import (
    balances,
    batteries,
    conditions,
    conventions,
    datasets,
    engines,
    evaluations,
    generators,
    losses,
    memories,
    metrics,
    monitors,
    nearest,
    networks,
    objectives,
    representations,
    sources,
    trackers,
)
from rdm.rehearsing.expected import expected
from rdm.rehearsing.step import Does, Keeps, Rehearsal
from rdm.scaling.sharding import Names, copied, placed
from rdm.scaling.sums import Passes
from rdm.sweeping.engine import Job
from rdm.timing.reads import usual
from rdm.timing.regions import region
from rdm.training.augmentation import Augmentation
from rdm.training.auxiliary import Auxiliary
from rdm.training.loss import Fed, Logged, Loss, Setting, Summed, accumulate, pieces
from rdm.training.resumed import weights_of
from rdm.training.run import Tracker
from rdm.training.watching import Monitor
from rdm.trust import confined, refuse_if_confined, require

__all__ = [
    "accumulate",
    "anything",
    "assemble",
    "Augmentation",
    "Auxiliary",
    "Balance",
    "balances",
    "batteries",
    "Battery",
    "between",
    "by_member",
    "Cat",
    "checked",
    "Condition",
    "conditions",
    "Conditions",
    "confined",
    "conventions",
    "copied",
    "CorruptFileError",
    "Count",
    "Data",
    "Dataset",
    "datasets",
    "decode",
    "described",
    "digest",
    "Distance",
    "Does",
    "draw",
    "drawn",
    "EDGE",
    "EMA",
    "encoded",
    "EncodedItems",
    "Estimate",
    "engines",
    "evaluations",
    "expect",
    "Fed",
    "FETCH",
    "first_line",
    "expected",
    "Float",
    "FlowGenerator",
    "FlowMap",
    "Follower",
    "Fraction",
    "Gaussian",
    "generated",
    "Generator",
    "generators",
    "hub_file",
    "images",
    "InputError",
    "Inputs",
    "is_grey",
    "Job",
    "Judge",
    "Keeps",
    "landmarks",
    "Law",
    "LogMel",
    "load_strictly",
    "load_weights",
    "Logged",
    "Loss",
    "losses",
    "mapped",
    "Measure",
    "median_distance",
    "memories",
    "Memory",
    "Metric",
    "metrics",
    "MismatchError",
    "mismatches",
    "Moments",
    "Monitor",
    "monitors",
    "moved",
    "Names",
    "nearest",
    "networks",
    "NoMemory",
    "NonFiniteError",
    "Nonnegative",
    "Numbers",
    "Objective",
    "objectives",
    "of_groups",
    "of_share",
    "open_table",
    "over",
    "Part",
    "Passes",
    "pieces",
    "placed",
    "Population",
    "portion",
    "Portion",
    "Positive",
    "Precision",
    "printable",
    "Queue",
    "Range",
    "rank",
    "Ratio",
    "read_weights",
    "Real",
    "record",
    "Reference",
    "refuse_if_confined",
    "region",
    "Rehearsal",
    "Representation",
    "representations",
    "require",
    "resample",
    "Rows",
    "rows_of",
    "Samples",
    "Seed",
    "seeded",
    "Seen",
    "SelfNormalized",
    "Setting",
    "Several",
    "Share",
    "Size",
    "sizes_alone",
    "Solved",
    "Solver",
    "Source",
    "sources",
    "squared_distances",
    "Starter",
    "Statistic",
    "Stored",
    "stream",
    "Sum",
    "Summary",
    "Summed",
    "Table",
    "Terms",
    "thin",
    "tokens",
    "total",
    "Traits",
    "Tracker",
    "trackers",
    "Transport",
    "tried",
    "UNDIVIDED",
    "Uniform",
    "UnknownNameError",
    "usual",
    "waveforms",
    "weights_of",
    "Workers",
    "world_size",
    "write_text",
    "Z",
]
