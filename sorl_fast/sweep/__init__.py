"""Many runs of one study: methods x environments x seeds, trained and evaluated on every core there is."""
