"""Named conventions: the metrics of a paper with its hyperparameters, where they differ from the defaults here."""

from rdm.api import conventions


@conventions.register("fid")
def fid() -> tuple[str, ...]:
    """FID, KID and the Inception score as they are usually published, under the battery of the same name.

    Source: Heusel et al. (2017), unbiased covariances; Binkowski et al. (2018), mean of 100 subsets of 1000 rows, not
    times 1000; Salimans et al. (2016), 10 splits. FID is of 50,000 items (`-n 50000`) against the whole data set
    (`rdm reference --split 0`).
    """
    return "fd", "kid", "inception_score"


@conventions.register("fd_loss")
def fd_loss() -> tuple[str, ...]:
    """FD, FDr6 over its fixed normalisers, Inception score, precision and recall with k = 3, as FD-loss reports them.

    Source: Yang et al. (2026), "Representation Fréchet Loss", section 4: 50,000 items, every class 50 times
    (`-n 50000 --condition all`), against statistics of the training set. The normalisers are those that its tables
    follow from, not the rounded ones of its evaluator (`fdr`). Its splits of the Inception score and its reference
    rows of precision and recall (validation pictures) are other draws.
    """
    return "fd", "fdr(below='fd_loss')", "inception_score", "precision(k=3)", "recall(k=3)"


@conventions.register("irdm")
def irdm() -> tuple[str, ...]:
    """SW_r and MMD_r as iRDM reports them, of 16,384 items.

    Source: Feng et al. (2026), "Representation Distribution Matching", eq. 5 and appendix D: 1,024 directions from seed
    0 on the rows' own device. MMD_r has the exact kernel in place of 4,096 random features.
    """
    return "sw_r(directions='irdm')", "mmd_r"


@conventions.register("kynkaanniemi")
def kynkaanniemi() -> tuple[str, ...]:
    """Precision and recall with k = 3, as Kynkäänniemi et al. (2019) and most papers since; the default here is 5."""
    return "precision(k=3)", "recall(k=3)"


@conventions.register("fadtk")
def fadtk() -> tuple[str, ...]:
    """FAD and FAD-infinity of audio features, of 500 rows or more, a line through 25 points.

    Source: Gui et al. (2024), "Adapting Frechet Audio Distance for Generative Music Evaluation", section 3. Its code
    draws subsets with replacement, whose line ends at the FAD of all rows; here without, as Chong and Forsyth (2020).
    """
    return "fd", "fd_infinity(least=500, points=25)"
