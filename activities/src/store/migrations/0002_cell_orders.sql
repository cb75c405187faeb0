-- What a Cell's workflow has decided of its cell; it overrules what the cell says of itself.
CREATE TABLE cell_orders (
    cell  TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL
);
