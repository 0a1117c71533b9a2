"""Figures of errors, and the report."""

from thawline.pipelines.reporting.pipeline import create_error_analysis, create_report

__all__ = ["create_error_analysis", "create_report"]
