"""In-context regression: settings, constructed transformers, trained learners."""
