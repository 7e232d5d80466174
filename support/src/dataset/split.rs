//! Which example goes where: by rank in an order that depends on the seed and the example's id
//! alone, so that the split is the same on every machine and whatever order files are listed in.

use sha2::{Digest, Sha256};

use super::{Example, Label};
use crate::{Error, Result};

/// Sorts by sha256 of seed and id.
pub(super) fn rank(mut examples: Vec<Example>, seed: u64) -> Vec<Example> {
    examples.sort_by_cached_key(|example| {
        Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(&example.id)
            .finalize()
    });
    examples
}

/// The groups of examples that are shared out each for itself: the classes. An example of several classes
/// is with those of the rarest of them, as chance alone shares out the frequent ones well enough; those of
/// no class are a group of their own.
pub(crate) struct Strata {
    /// How many examples there are of each class.
    sizes: Vec<usize>,
}

impl Strata {
    pub(crate) fn of<'a>(examples: impl IntoIterator<Item = &'a Example>, classes: usize) -> Self {
        let sizes = count(examples, classes);
        Self { sizes }
    }

    fn number(&self) -> usize {
        self.sizes.len() + 1
    }

    /// Returns an example's group by its label.
    pub(crate) fn index(&self, label: &Label) -> usize {
        let rarest = label.classes().min_by_key(|&class| self.sizes[class]);
        rarest.unwrap_or(self.sizes.len())
    }

    /// Returns the number of examples of each group.
    pub(crate) fn count(&self, examples: &[Example]) -> Vec<usize> {
        let mut counts = vec![0; self.number()];
        for example in examples {
            counts[self.index(&example.label)] += 1;
        }
        counts
    }
}

/// Cuts ranked examples into training, validation and test by weight, each class for itself: every
/// part has the classes in the dataset's proportion, and a class of one example is trained on. One that
/// is there several times is in one part, or what is trained on would be tested as well.
pub(super) fn cut(
    ranked: &[Example],
    classes: usize,
    weights: [u32; 3],
) -> Result<[Vec<Example>; 3]> {
    let weights = weights.map(u128::from);
    let total: u128 = weights.iter().sum();
    if total == 0 {
        return Err(Error::Argument {
            name: "split(weights)",
            expected: "a weight above 0, as in [8, 1, 1]".into(),
            got: "[0, 0, 0]".into(),
        });
    }
    let strata = Strata::of(ranked, classes);
    let sizes = strata.count(ranked);
    let mut seen = vec![0; strata.number()];
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    let mut before: Option<(&Example, usize)> = None;
    for example in ranked {
        let stratum = strata.index(&example.label);
        let (size, at) = (sizes[stratum] as u128, seen[stratum]);
        seen[stratum] += 1;
        let ends_after = |weight: u128| at < (size * weight).div_ceil(total);
        let part = if let Some((_, part)) = before.filter(|(before, _)| before.id == example.id) {
            part
        } else if ends_after(weights[0]) {
            0
        } else if ends_after(weights[0] + weights[1]) {
            1
        } else {
            2
        };
        before = Some((example, part));
        parts[part].push(example.clone());
    }
    Ok(parts)
}

/// Keeps the first `limit` examples, shared among the parts and classes in proportion to their
/// sizes. A class of the first part (training) keeps at least one example where `limit` allows.
pub(super) fn limit(parts: &mut [Vec<Example>], classes: usize, limit: usize) {
    let strata = Strata::of(parts.iter().flatten(), classes);
    let sizes: Vec<usize> = parts.iter().flat_map(|part| strata.count(part)).collect();
    let total: usize = sizes.iter().sum();
    if limit >= total {
        return;
    }
    let share = |&size: &usize| size as u128 * limit as u128 / total as u128;
    let mut quotas: Vec<usize> = sizes.iter().map(|size| share(size) as usize).collect();
    let remainder = |at: &usize| sizes[*at] as u128 * limit as u128 % total as u128;
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by_key(|at| std::cmp::Reverse(remainder(at)));
    for at in by_remainder
        .into_iter()
        .take(limit - quotas.iter().sum::<usize>())
    {
        quotas[at] += 1;
    }
    let of_training = strata.number();
    for empty in (0..of_training).filter(|&at| sizes[at] > 0) {
        let largest = (0..quotas.len())
            .max_by_key(|&at| quotas[at])
            .unwrap_or(empty);
        if quotas[empty] == 0 && (quotas[largest] > 1 || largest >= of_training) {
            quotas[largest] -= 1;
            quotas[empty] = 1;
        }
    }
    for (part, quotas) in parts.iter_mut().zip(quotas.chunks_mut(strata.number())) {
        part.retain(|example| {
            let quota = &mut quotas[strata.index(&example.label)];
            let kept = *quota > 0;
            *quota = quota.saturating_sub(1);
            kept
        });
    }
}

/// The number of examples of each class.
pub(super) fn count<'a>(
    examples: impl IntoIterator<Item = &'a Example>,
    classes: usize,
) -> Vec<usize> {
    let mut counts = vec![0; classes];
    for class in examples
        .into_iter()
        .flat_map(|example| example.label.classes())
    {
        counts[class] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn examples(sizes: &[usize]) -> Vec<Example> {
        let class = |(label, &size)| {
            (0..size)
                .map(move |at| Example::at_path(format!("{label}/{at}.jpg"), label, "".as_ref()))
        };
        sizes.iter().enumerate().flat_map(class).collect()
    }

    fn ids(examples: &[Example]) -> Vec<&str> {
        examples.iter().map(|example| example.id.as_str()).collect()
    }

    #[test]
    fn the_order_depends_on_seed_and_id_alone() {
        let straight = rank(examples(&[5, 5]), 0);
        let mut reversed = examples(&[5, 5]);
        reversed.reverse();
        assert_eq!(ids(&straight), ids(&rank(reversed, 0)));
        assert_ne!(ids(&straight), ids(&rank(examples(&[5, 5]), 1)));
        // Python: sorted(ids, key=lambda id: sha256(bytes(8) + id.encode()).digest())
        let expected = ["0/1.jpg", "1/1.jpg", "1/0.jpg", "0/0.jpg"];
        assert_eq!(ids(&rank(examples(&[2, 2]), 0)), expected);
    }

    #[test]
    fn every_example_is_in_one_part_and_the_parts_have_the_weights_sizes() {
        let ranked = rank(examples(&[100, 50]), 3);
        let parts = cut(&ranked, 2, [8, 1, 1]).unwrap();
        let counts: Vec<_> = parts.iter().map(|part| count(part, 2)).collect();
        assert_eq!(counts, [[80, 40], [10, 5], [10, 5]]);
        let all: BTreeSet<_> = parts.iter().flat_map(|part| ids(part)).collect();
        assert_eq!(all.len(), 150);
    }

    #[test]
    fn copies_of_an_example_are_in_one_part() {
        let ranked = rank([examples(&[30, 30]), examples(&[30, 0])].concat(), 0);
        let parts = cut(&ranked, 2, [8, 1, 1]).unwrap();
        let parts = parts.each_ref().map(|part| BTreeSet::from_iter(ids(part)));
        assert!(parts.iter().all(|part| !part.is_empty()));
        assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), 60);
    }

    #[test]
    fn the_classes_are_mixed_within_a_part() {
        let parts = cut(&rank(examples(&[100, 100]), 0), 2, [8, 1, 1]).unwrap();
        let first: BTreeSet<_> = parts[0]
            .iter()
            .take(16)
            .map(|example| &example.label)
            .collect();
        assert_eq!(first.len(), 2);
    }

    #[test]
    fn a_class_of_one_example_is_trained_on() {
        let parts = cut(&rank(examples(&[1, 40]), 0), 2, [8, 1, 1]).unwrap();
        assert_eq!(count(&parts[0], 2), [1, 32]);
    }

    #[test]
    fn examples_of_several_classes_are_shared_out_with_those_of_their_rarest_class() {
        // All are of class 0, a tenth of class 1 too, and a fifth of none.
        let example = |at: usize| {
            let classes: &[usize] = match at {
                0..20 => &[0, 1],
                20..160 => &[0],
                _ => &[],
            };
            let label = Label::from_iter(classes.iter().copied());
            Example::at_path(format!("{at}.jpg"), label, "".as_ref())
        };
        let ranked = rank((0..200).map(example).collect(), 0);
        let mut parts = cut(&ranked, 2, [8, 1, 1]).unwrap();
        let counts = |parts: &[Vec<Example>]| -> Vec<_> {
            let of_part = |part: &Vec<Example>| (part.len(), count(part, 2));
            parts.iter().map(of_part).collect()
        };
        let expected = [(160, vec![128, 16]), (20, vec![16, 2]), (20, vec![16, 2])];
        assert_eq!(counts(&parts), expected);
        limit(&mut parts, 2, 100);
        let expected = [(80, vec![64, 8]), (10, vec![8, 1]), (10, vec![8, 1])];
        assert_eq!(counts(&parts), expected);
    }

    #[test]
    fn weights_of_zero_leave_a_part_empty_and_all_zero_is_refused() {
        let ranked = rank(examples(&[9, 9]), 0);
        let parts = cut(&ranked, 2, [2, 0, 1]).unwrap();
        assert_eq!(parts.map(|part| part.len()), [12, 0, 6]);
        assert!(matches!(
            cut(&ranked, 2, [0, 0, 0]),
            Err(Error::Argument { .. })
        ));
        let parts = cut(&ranked, 2, [u32::MAX, u32::MAX, 0]).unwrap();
        assert_eq!(parts.map(|part| part.len()), [10, 8, 0]);
    }

    #[test]
    fn a_limit_is_shared_in_proportion_to_the_sizes() {
        let mut parts = [examples(&[1000, 1000]), examples(&[500, 500]), Vec::new()];
        limit(&mut parts, 2, 300);
        let counts: Vec<_> = parts.iter().map(|part| count(part, 2)).collect();
        assert_eq!(counts, [[100, 100], [50, 50], [0, 0]]);
    }

    #[test]
    fn a_limit_is_met_exactly_and_keeps_every_class_in_training() {
        for wanted in [2, 3, 7, 100] {
            let mut parts = [examples(&[3, 900]), examples(&[1, 300])];
            limit(&mut parts, 2, wanted);
            assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), wanted);
            assert!(
                count(&parts[0], 2).iter().all(|&size| size > 0),
                "limit {wanted}"
            );
        }
    }

    #[test]
    fn a_limit_above_the_size_changes_nothing() {
        let mut parts = [examples(&[3, 4])];
        limit(&mut parts, 2, 8);
        assert_eq!(parts[0].len(), 7);
    }
}
