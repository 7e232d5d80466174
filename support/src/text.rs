//! Numbers and lists as a person writes them.

/// At most so many names or lines are listed.
pub(crate) const LISTED: usize = 20;

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

/// Lists names, of very many the first: `cats, dogs, … and 9,998 more`.
pub(crate) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let mut shown: Vec<&str> = names.iter().take(LISTED).map(AsRef::as_ref).collect();
    let more = match names.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!("… and {} more", thousands(more)),
    };
    shown.extend((!more.is_empty()).then_some(more.as_str()));
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn of_many_names_the_first_are_listed() {
        assert_eq!(super::listed(&["cats", "dogs"]), "cats, dogs");
        let names: Vec<String> = (0..1021).map(|at| at.to_string()).collect();
        let listed = super::listed(&names);
        assert!(listed.ends_with(", 18, 19, … and 1,001 more"), "{listed}");
    }

    #[test]
    fn digits_are_grouped_in_threes_from_the_right() {
        let texts = [0, 999, 1000, 2_257_984].map(super::thousands);
        assert_eq!(texts, ["0", "999", "1,000", "2,257,984"]);
    }
}
