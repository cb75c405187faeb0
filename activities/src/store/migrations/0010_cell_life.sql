-- What lists show of a cell beside its hint: what its builder counts, and what its Cell says beside the state.
ALTER TABLE cells ADD COLUMN facts TEXT;
ALTER TABLE cell_orders ADD COLUMN detail TEXT;
