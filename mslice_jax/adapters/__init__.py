"""Networks as functions of their variables: one front door for each kind of model."""
