"""How jobs and batches are shown: over HTTP, on the command line, on the dashboard."""
