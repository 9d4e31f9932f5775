"""The study: cells (one training each), their results as small files, verdicts on the paper's claims."""
