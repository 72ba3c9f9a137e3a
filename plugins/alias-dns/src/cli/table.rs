//! Columns of text, each as wide as its widest cell.

use std::io::{self, Write};

/// Prints `head` and `rows` with two blanks between columns.
pub(super) fn print<const N: usize>(
    head: [&str; N],
    rows: &[[String; N]],
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    print_row(&head.map(str::to_owned), widths, out)?;
    rows.iter().try_for_each(|row| print_row(row, widths, out))
}

fn print_row<const N: usize>(row: &[String; N], widths: [usize; N], out: &mut dyn Write) -> io::Result<()> {
    let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    writeln!(out, "{}", cells.join("  ").trim_end())
}
