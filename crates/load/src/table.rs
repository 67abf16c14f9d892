//! Tables of results on a terminal.

use comfy_table::{CellAlignment, Table, presets};

/// Makes a table whose columns from `numbers_from` on are right-aligned.
pub fn new_table(header: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(header.to_vec());
    for column in table.column_iter_mut().skip(numbers_from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
