"""Costs against size: stores grow, and each row of a table says what something costs then."""
