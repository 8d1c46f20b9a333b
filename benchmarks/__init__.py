"""How fast the parts are, each beside what a user would otherwise run. Start with: python -m benchmarks"""
