"""The same profile on machines that a scheduler lends: rendered for its engine and handed over."""
