"""What this machine has for a bundle, what is wrong with it, and what to do about it."""

from tokprune.doctor.examination import examine
from tokprune.doctor.finding import Finding, Host, Report

__all__ = ["Finding", "Host", "Report", "examine"]
