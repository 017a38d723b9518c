"""Report: placeholder until written below."""
