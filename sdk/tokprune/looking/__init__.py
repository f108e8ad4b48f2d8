"""What the vision encoder is shown of the pictures, in one look or in several.

    full      everything at once
    lazy      whole pictures and some frames first, then the crops and frames that the question
              points to; what is encoded is what the full look would give, to the bit
    coarse    the picture at half its size first, then those places in full that matter
    repeats   everything but what repeats pixels that were encoded already
    auto      lazy where there are crops and the selector scores, coarse where a budget in time
              would be missed otherwise, else full

A `Following` in the place of a name remembers a stream's vision tokens, and encodes what has moved.
"""

from tokprune.looking.coarse import Coarse, Small, below, frames_in
from tokprune.looking.following import Following
from tokprune.looking.lazy import Lazy
from tokprune.looking.look import FULL, Asked, Full, Look, Looking, showing
from tokprune.looking.ways import (
    ENCODES,
    NO_WAYS,
    Encode,
    Way,
    Ways,
    check_way,
    crops_left,
    looking_of,
    stream_way,
    way_of,
)

__all__ = [
    "ENCODES",
    "FULL",
    "NO_WAYS",
    "Asked",
    "Coarse",
    "Encode",
    "Following",
    "Full",
    "Lazy",
    "Look",
    "Looking",
    "Small",
    "Way",
    "Ways",
    "below",
    "check_way",
    "crops_left",
    "frames_in",
    "looking_of",
    "showing",
    "stream_way",
    "way_of",
]
