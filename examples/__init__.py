"""Examples. A package, so that `examples/user_policy.yaml` can name a class in it."""
