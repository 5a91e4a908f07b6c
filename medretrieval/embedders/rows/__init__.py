"""The rows of the table of embedders, a module for every kind. Imports nothing heavy."""
