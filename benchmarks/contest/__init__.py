"""One model in the contest: everybody's product, built, checked and timed in the same run."""
