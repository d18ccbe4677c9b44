"""Reading the record of decisions back: is it whole, what is its story, which predictions led where."""
