"""Many runs that differ in a few settings: run them, then turn what they left into evaluations and a frontier."""
