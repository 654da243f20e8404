"""Ray Serve and Ray actors around the rooms below: thin, they feed pure objects and enact them."""
