"""Quality of a reconstruction on a stack without ground truth: measurements, verdicts, and a report."""

from emformer_hub.audit.audit import Audit, audit_stack, check_auditable
from emformer_hub.audit.report import check_report, write_report
from emformer_hub.audit.verdicts import Verdict

__all__ = ["Audit", "Verdict", "audit_stack", "check_auditable", "check_report", "write_report"]
