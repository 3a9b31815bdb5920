"""Is the tuned model better than its base? Judged on rows that were never trained on."""
