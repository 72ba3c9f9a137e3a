//! Columns of text for a person, each as wide as its widest cell. Pure.

const BETWEEN: &str = "  ";

/// `head` and `rows`, a line each, without blanks at the ends.
#[must_use]
pub fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(width);
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = width(cell).max(*widest);
        }
    }
    let mut text = String::new();
    push_line(&mut text, head, widths);
    for row in rows {
        push_line(&mut text, row.each_ref().map(String::as_str), widths);
    }
    text
}

fn push_line<const N: usize>(text: &mut String, cells: [&str; N], widths: [usize; N]) {
    let start = text.len();
    for (cell, widest) in cells.into_iter().zip(widths) {
        text.push_str(cell);
        // A format's width has 16 bits, and a container may have more names than that.
        text.extend(std::iter::repeat_n(' ', widest - width(cell)));
        text.push_str(BETWEEN);
    }
    text.truncate(text[start..].trim_end().len() + start);
    text.push('\n');
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_is_as_wide_as_its_widest_cell() {
        let rows = [["a".to_owned(), "é2".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(columns(["ID", "N"], &rows), "ID    N\na     é2\nlong\n");
        assert_eq!(columns(["ID", "N"], &[]), "ID  N\n");
    }

    #[test]
    fn a_cell_may_be_wider_than_any_screen() {
        let wide = "x".repeat(70_000);
        let text = columns(["ID", "N"], &[[wide.clone(), "1".to_owned()]]);
        let blanks = " ".repeat(70_000);
        assert_eq!(text, format!("ID{blanks}N\n{wide}  1\n"));
    }
}
