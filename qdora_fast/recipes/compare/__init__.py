"""Methods against each other on the same data: arms, trials, figures over seeds, and how they are shown."""
