"""What drafting may spend and has spent: budgets, costs, and the paid questions themselves."""
