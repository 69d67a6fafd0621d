"""The tuner TIPS: experiments from the command line, over the subnets of a run."""
