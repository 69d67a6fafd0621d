"""Tables, plots and the HTML report of a run."""

from tips_nni.report._html import write_explain_pictures as write_explain_pictures
from tips_nni.report._html import write_figure as write_figure
from tips_nni.report._html import write_report as write_report
from tips_nni.report._plots import front_figure as front_figure
from tips_nni.report._tables import describe_coverage as describe_coverage
from tips_nni.report._tables import describe_diagnostics as describe_diagnostics
from tips_nni.report._tables import describe_subnet as describe_subnet
from tips_nni.report._tables import explain_tables as explain_tables
from tips_nni.report._tables import front_table as front_table
