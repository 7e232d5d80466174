//! Numbers as a person writes them.

/// Groups the digits: `23,262`.
pub(crate) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or(""))
        .collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_grouped_in_threes_from_the_right() {
        let texts = [0, 999, 1000, 2_257_984].map(super::thousands);
        assert_eq!(texts, ["0", "999", "1,000", "2,257,984"]);
    }
}
