"""What may befall a row of a call: one vocabulary for numpy, PyTorch, the kernels and csrc.

`csrc/include/sorl_fast/sorl.h` and `kernels/best_of_n.py` have the same numbers; a test compares them.
"""

from enum import IntFlag


class Status(IntFlag):
    """What befell one row of a call; 0 if nothing did.

    A held row has one of the first two, or CUT_SHORT, and HELD; any other row may have CLIPPED,
    CANDIDATE_REJECTED and CUT_SHORT. OUT_OF_DISTRIBUTION says nothing of the action, and comes with any of
    these but NONFINITE_OBS. REPLAYED stands alone.
    """

    NONFINITE_OBS = 1  # the observation has a NaN or an infinity
    NONFINITE_RESULT = 2  # every candidate was rejected
    HELD = 4  # the session's last good action was returned
    CLIPPED = 8  # the bounds changed the returned action
    CANDIDATE_REJECTED = 16  # a candidate's action or Q was not finite; the best of the rest won
    CUT_SHORT = 32  # the deadline passed before all that was planned was done
    OUT_OF_DISTRIBUTION = 64  # the observation is unlike those of the training: `act.ood`
    REPLAYED = 128  # no call was made: the action is the next of the last call's chunk
