"""From a retrain request to a judged model version: snapshot, checks, trainers, comparison, and the process around them."""
