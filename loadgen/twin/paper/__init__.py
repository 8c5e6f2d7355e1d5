"""The paper's experiments, one function each: they return the rows of the table and the data of the
figures."""
