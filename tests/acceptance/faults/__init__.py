"""Kinds of jobs that the acceptance tests run: workers load them through EXTRA_PIPELINES."""
