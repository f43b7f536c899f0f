"""The rules of tokens and money, as pure integer arithmetic. Decisions, projections and settlement all use these."""
