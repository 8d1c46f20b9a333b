"""The ground floor: catalogue, contract, store, extraction and neighbours. Imports neither stage."""
