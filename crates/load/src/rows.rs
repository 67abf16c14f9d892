//! CSV with a header, as spreadsheets, pandas and people write it: with quoted fields, spaces around them, and a
//! byte-order mark.

use anyhow::{Context as _, Result};
use csv::{ReaderBuilder, StringRecord, Trim};

/// Columns and rows of a file; rows may have different numbers of cells.
#[derive(Clone, Debug)]
pub struct Rows {
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug)]
pub struct Row {
    /// Line on which the row begins, from 1.
    pub line: usize,
    cells: StringRecord,
}

impl Rows {
    /// Reads a whole text. Empty lines are not rows. Without a header there are no columns.
    ///
    /// # Errors
    /// When it is not CSV.
    pub fn parse(text: &str) -> Result<Self> {
        // Skip lines of spaces before the header.
        let start = text.len() - text.trim_start_matches('\u{feff}').trim_start().len();
        let mut lines = Lines { text, at: 0, line: 1 };
        let mut reader =
            ReaderBuilder::new().flexible(true).trim(Trim::All).from_reader(&text.as_bytes()[start..]);
        let columns = reader.headers().context("read the header")?.iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for cells in reader.into_records() {
            let cells = cells.context("read a row")?;
            let position = cells.position().context("a row has no place")?;
            let line = lines.of(start + usize::try_from(position.byte())?);
            // A line of spaces is read as a row with one empty cell.
            let is_empty = cells.len() == 1 && cells[0].is_empty();
            if !is_empty {
                rows.push(Row { line, cells });
            }
        }
        Ok(Self { columns, rows })
    }
}

impl Row {
    /// Returns the cell of the column at `idx`; empty if the row is too short.
    pub fn cell(&self, idx: usize) -> &str {
        self.cells.get(idx).unwrap_or_default()
    }

    pub fn n_cells(&self) -> usize {
        self.cells.len()
    }
}

/// Counts lines up to a place that only moves forward.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    /// Returns the line on which a row begins. The reader reports the place after the row before, which is its line
    /// end.
    fn of(&mut self, place: usize) -> usize {
        let text = self.text.as_bytes();
        let ends = text[place..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.line += text[self.at..place + ends].iter().filter(|byte| **byte == b'\n').count();
        self.at = place + ends;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::Rows;

    fn read(text: &str) -> (Vec<String>, Vec<(usize, Vec<String>)>) {
        let Rows { columns, rows } = Rows::parse(text).unwrap();
        let cells = |row: &super::Row| (0..row.n_cells()).map(|idx| row.cell(idx).to_owned()).collect();
        (columns, rows.iter().map(|row| (row.line, cells(row))).collect())
    }

    fn owned(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn a_quoted_field_is_one_field() {
        let text = "\u{feff}\"a\", b ,\"c, d\"\r\n1,\"x, \"\"y\"\"\nz\",3\r\n\r\n   \r\n4,5\r\n";
        let (columns, rows) = read(text);
        assert_eq!(columns, owned(&["a", "b", "c, d"]));
        assert_eq!(rows, [(2, owned(&["1", "x, \"y\"\nz", "3"])), (6, owned(&["4", "5"]))]);
    }

    #[test]
    fn lines_are_counted_from_the_start_of_the_file() {
        assert_eq!(read("\n \na,b\n1,2\n").1, [(4, owned(&["1", "2"]))]);
        assert_eq!(read(""), (Vec::new(), Vec::new()));
    }
}
