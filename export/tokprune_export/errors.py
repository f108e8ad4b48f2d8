"""Errors of the export side, one line each for the user. The tree is in `tokprune.errors`."""

from tokprune.errors import TokpruneError


class ExportRefused(TokpruneError):
    """The checkpoint, the options or this machine do not allow the export."""

    code = "export_refused"


class ParityFailed(TokpruneError):
    """The graphs do not say what the checkpoint says."""

    code = "parity_failed"
