//! From the programs' figures to a table in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

/// Multiply-adds of MobileNetV2's base on a picture of 160x160, two operations each.
const GFLOP_PER_PICTURE: f64 = 0.308;

/// One measure of a program, by the way in which it was done (memory layout, say).
type Variants = BTreeMap<String, f64>;

/// What a program measured of itself; `bench/README.md` explains the keys.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    versions: BTreeMap<String, String>,
    threads: usize,
    pictures: usize,
    validation_pictures: Option<usize>,
    epochs: Option<usize>,
    decode: Variants,
    base_forward: Variants,
    fine_tuning: Variants,
    gemm_gflops: Option<f64>,
    phase_1_seconds: Option<f64>,
    phase_2_seconds: Option<f64>,
    seconds: Option<f64>,
    phase_1_val_accuracy: Option<f64>,
    phase_2_val_accuracy: Option<f64>,
    peak_memory_mb: Option<f64>,
}

/// All that a table is made from.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) machine: String,
    /// What the pictures are called.
    pub(super) pictures: String,
    pub(super) rounds: usize,
    /// Titles and reports, this project's first: the others are compared with it.
    pub(super) columns: Vec<(&'static str, Vec<Report>)>,
}

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

#[derive(Debug)]
struct Row {
    title: &'static str,
    better: Better,
    /// Whether it is told how many times as good as the others this project is.
    compared: bool,
    decimals: usize,
    read: fn(&Report) -> Variants,
}

const ROWS: &[Row] = &[
    Row {
        title: "decode + format, pictures/s",
        better: Better::More,
        compared: true,
        decimals: 0,
        read: |report| report.decode.clone(),
    },
    Row {
        title: "base forward, pictures/s",
        better: Better::More,
        compared: true,
        decimals: 0,
        read: |report| report.base_forward.clone(),
    },
    Row {
        title: "fine-tuning step, pictures/s",
        better: Better::More,
        compared: true,
        decimals: 0,
        read: |report| report.fine_tuning.clone(),
    },
    Row {
        title: "matrix product, GFLOP/s",
        better: Better::More,
        compared: false,
        decimals: 0,
        read: |report| only(report.gemm_gflops),
    },
    Row {
        title: "base forward, % of that",
        better: Better::More,
        compared: false,
        decimals: 0,
        read: share_of_gemm,
    },
    Row {
        title: "tutorial, phase 1, s",
        better: Better::Less,
        compared: true,
        decimals: 1,
        read: |report| only(report.phase_1_seconds),
    },
    Row {
        title: "tutorial, phase 2, s",
        better: Better::Less,
        compared: true,
        decimals: 1,
        read: |report| only(report.phase_2_seconds),
    },
    Row {
        title: "tutorial in all, s",
        better: Better::Less,
        compared: true,
        decimals: 1,
        read: |report| only(report.seconds),
    },
    Row {
        title: "validation accuracy after phase 1",
        better: Better::More,
        compared: false,
        decimals: 4,
        read: |report| only(report.phase_1_val_accuracy),
    },
    Row {
        title: "validation accuracy after phase 2",
        better: Better::More,
        compared: false,
        decimals: 4,
        read: |report| only(report.phase_2_val_accuracy),
    },
    Row {
        title: "tutorial, peak memory, MB",
        better: Better::Less,
        compared: true,
        decimals: 0,
        read: |report| only(report.peak_memory_mb),
    },
];

/// A measure that is done in one way only.
fn only(value: Option<f64>) -> Variants {
    value
        .map(|value| (String::new(), value))
        .into_iter()
        .collect()
}

/// The arithmetic rate of the base, in percent of the matrix product's.
fn share_of_gemm(report: &Report) -> Variants {
    let share = |gemm: f64| {
        let share = move |(name, rate): (&String, &f64)| {
            (name.clone(), 100.0 * rate * GFLOP_PER_PICTURE / gemm)
        };
        report.base_forward.iter().map(share).collect()
    };
    report.gemm_gflops.map(share).unwrap_or_default()
}

impl Row {
    /// Returns the values of all reports, by variant.
    fn values(&self, reports: &[Report]) -> BTreeMap<String, Vec<f64>> {
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (name, value) in reports.iter().flat_map(self.read) {
            values.entry(name).or_default().push(value);
        }
        values
    }

    /// Returns the median of each variant, the best variant first.
    fn medians(&self, reports: &[Report]) -> Vec<(String, f64)> {
        let medians = self.values(reports).into_iter();
        let mut medians: Vec<_> = medians
            .filter_map(|(name, values)| Some((name, median(values)?)))
            .collect();
        medians.sort_by(|(_, a), (_, b)| match self.better {
            Better::More => b.total_cmp(a),
            Better::Less => a.total_cmp(b),
        });
        medians
    }

    fn best(&self, reports: &[Report]) -> Option<f64> {
        self.medians(reports).first().map(|(_, value)| *value)
    }

    /// Returns a value, and how many times as good as that `ours` is.
    fn cell(&self, value: f64, ours: Option<f64>) -> String {
        let text = format!("{value:.*}", self.decimals);
        match ours.filter(|_| self.compared) {
            None => text,
            Some(ours) => {
                let ratio = match self.better {
                    Better::More => ours / value,
                    Better::Less => value / ours,
                };
                format!("{text} ({ratio:.2}x)")
            }
        }
    }
}

impl Figures {
    /// Returns the table, what was measured on what, and what a table has no room for.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "# Benchmark\n\n{}.", self.machine)?;
        writeln!(text, "{}\n", self.subject())?;
        let titles: Vec<_> = self.columns.iter().map(|(title, _)| *title).collect();
        writeln!(text, "| | {} |", titles.join(" | "))?;
        writeln!(text, "|---|{}", "---|".repeat(titles.len()))?;
        for row in ROWS {
            let best: Vec<_> = self.columns.iter().map(|(_, all)| row.best(all)).collect();
            if best.iter().all(Option::is_none) {
                continue;
            }
            write!(text, "| {} |", row.title)?;
            for (index, value) in best.iter().enumerate() {
                let ours = best[0].filter(|_| index > 0);
                let cell = value.map_or(String::new(), |value| row.cell(value, ours));
                write!(text, " {cell} |")?;
            }
            writeln!(text)?;
        }
        writeln!(
            text,
            "\nIn brackets: how many times as fast, or as small, ours is. Of several ways that a program was \
             run in, the fastest is in the table."
        )?;
        if let Some(spread) = self.spread() {
            writeln!(text, "{spread}")?;
        }
        writeln!(text)?;
        self.write_variants(text)?;
        self.write_versions(text)
    }

    /// Says what the programs worked on.
    fn subject(&self) -> String {
        let all = || self.columns.iter().flat_map(|(_, reports)| reports);
        let pictures = all().map(|report| report.pictures).max().unwrap_or(0);
        let mut text = format!("Pictures: {}, {pictures} for training", self.pictures);
        if let Some(count) = all().find_map(|report| report.validation_pictures) {
            let _ = write!(text, ", {count} for validation");
        }
        let _ = write!(
            text,
            "; 160x160, batches of 32. Pieces: medians of {} round{}.",
            self.rounds,
            if self.rounds == 1 { "" } else { "s" },
        );
        if let Some(epochs) = all().find_map(|report| report.epochs) {
            let _ = write!(text, " Tutorial: {epochs} + {epochs} epochs, once.");
        }
        text
    }

    /// Says by how much a round was off its median, at most.
    fn spread(&self) -> Option<String> {
        let mut most: Option<(f64, String)> = None;
        for (title, reports) in &self.columns {
            for row in ROWS.iter().filter(|row| row.compared) {
                for values in row.values(reports).into_values().filter(|v| v.len() > 1) {
                    let middle = median(values.clone())?;
                    let off = values.iter().map(|value| (value / middle - 1.0).abs());
                    let off = off.fold(0.0, f64::max);
                    if most.as_ref().is_none_or(|(largest, _)| off > *largest) {
                        most = Some((off, format!("{title}, {}", row.title)));
                    }
                }
            }
        }
        let (off, what) = most?;
        Some(format!(
            "A round is off its median by {:.0} % at most ({what}).",
            100.0 * off
        ))
    }

    fn write_variants(&self, text: &mut String) -> std::fmt::Result {
        for row in ROWS.iter().filter(|row| row.compared) {
            for (title, reports) in &self.columns {
                let medians = row.medians(reports);
                if medians.len() > 1 {
                    let ways: Vec<_> = medians
                        .iter()
                        .map(|(name, value)| format!("{name} {}", row.cell(*value, None)))
                        .collect();
                    writeln!(text, "- {title}, {}: {}", row.title, ways.join(", "))?;
                }
            }
        }
        Ok(())
    }

    fn write_versions(&self, text: &mut String) -> std::fmt::Result {
        let mut told: Vec<&BTreeMap<String, String>> = Vec::new();
        for (title, reports) in &self.columns {
            let Some(report) = reports.first() else {
                continue;
            };
            if told.contains(&&report.versions) {
                continue;
            }
            told.push(&report.versions);
            let versions: Vec<_> = report
                .versions
                .iter()
                .map(|(name, version)| format!("{name} {version}"))
                .collect();
            let (versions, threads) = (versions.join(", "), report.threads);
            writeln!(text, "- {title}: {versions}; {threads} threads")?;
        }
        Ok(())
    }
}

/// Returns the middle value, or the mean of the two middle ones.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(lines: &[&str]) -> Vec<Report> {
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn figures() -> Figures {
        let ours = reports(&[
            r#"{"program": "ours", "mode": "pieces", "versions": {"rustc": "1.95.0"}, "threads": 2, "pictures": 2000,
                "decode": {"threads": 900.0}, "base_forward": {"default": 400.0}, "gemm_gflops": 160.0}"#,
            r#"{"versions": {"rustc": "1.95.0"}, "threads": 2, "pictures": 2000,
                "decode": {"threads": 1000.0}, "base_forward": {"default": 420.0}, "gemm_gflops": 170.0}"#,
            r#"{"versions": {"rustc": "1.95.0"}, "threads": 2, "pictures": 2000,
                "decode": {"threads": 800.0}, "base_forward": {"default": 380.0}, "gemm_gflops": 154.0}"#,
            r#"{"mode": "tutorial", "versions": {"rustc": "1.95.0"}, "threads": 2, "pictures": 2000, "validation_pictures": 1000,
                "epochs": 10, "phase_1_seconds": 9.0, "phase_2_seconds": 70.5, "seconds": 80.04,
                "phase_1_val_accuracy": 0.974, "phase_2_val_accuracy": 0.975, "peak_memory_mb": 800.4}"#,
        ]);
        let peer = reports(&[
            r#"{"mode": "pieces", "versions": {"torch": "2.11.0"}, "threads": 2, "pictures": 2000,
                "decode": {"data_loader": 450.0}, "base_forward": {"contiguous": 80.0, "channels_last": 110.0}, "gemm_gflops": 161.0}"#,
            r#"{"mode": "pieces", "versions": {"torch": "2.11.0"}, "threads": 2, "pictures": 2000,
                "decode": {"data_loader": 450.0}, "base_forward": {"contiguous": 70.0, "channels_last": 90.0}, "gemm_gflops": 161.0}"#,
            r#"{"mode": "tutorial", "versions": {"torch": "2.11.0"}, "threads": 2, "pictures": 2000, "validation_pictures": 1000,
                "epochs": 10, "phase_1_seconds": 450.0, "phase_2_seconds": 480.0, "seconds": 931.0,
                "phase_1_val_accuracy": 0.963, "phase_2_val_accuracy": 0.972, "peak_memory_mb": 1290.0}"#,
        ]);
        let extra = reports(&[
            r#"{"mode": "pieces", "versions": {"torch": "2.11.0"}, "threads": 2, "pictures": 2000,
                "decode": {"data_loader": 460.0}, "base_forward": {"contiguous": 150.0, "channels_last": 250.0}, "gemm_gflops": 161.0}"#,
        ]);
        Figures {
            machine: "A CPU, 2 cores, 8.0 GB of memory".into(),
            pictures: "pets".into(),
            rounds: 3,
            columns: vec![("ours", ours), ("PyTorch", peer), ("PyTorch, kept", extra)],
        }
    }

    #[test]
    fn the_table_has_medians_of_the_best_way_and_what_ours_is_to_them() {
        assert_eq!(
            figures().markdown(),
            "\
# Benchmark

A CPU, 2 cores, 8.0 GB of memory.
Pictures: pets, 2000 for training, 1000 for validation; 160x160, batches of 32. Pieces: medians of 3 rounds. Tutorial: 10 + 10 epochs, once.

| | ours | PyTorch | PyTorch, kept |
|---|---|---|---|
| decode + format, pictures/s | 900 | 450 (2.00x) | 460 (1.96x) |
| base forward, pictures/s | 400 | 100 (4.00x) | 250 (1.60x) |
| matrix product, GFLOP/s | 160 | 161 | 161 |
| base forward, % of that | 76 | 19 | 48 |
| tutorial, phase 1, s | 9.0 | 450.0 (50.00x) |  |
| tutorial, phase 2, s | 70.5 | 480.0 (6.81x) |  |
| tutorial in all, s | 80.0 | 931.0 (11.63x) |  |
| validation accuracy after phase 1 | 0.9740 | 0.9630 |  |
| validation accuracy after phase 2 | 0.9750 | 0.9720 |  |
| tutorial, peak memory, MB | 800 | 1290 (1.61x) |  |

In brackets: how many times as fast, or as small, ours is. Of several ways that a program was run in, the fastest is in the table.
A round is off its median by 11 % at most (ours, decode + format, pictures/s).

- PyTorch, base forward, pictures/s: channels_last 100, contiguous 75
- PyTorch, kept, base forward, pictures/s: channels_last 250, contiguous 150
- ours: rustc 1.95.0; 2 threads
- PyTorch: torch 2.11.0; 2 threads
"
        );
    }

    #[test]
    fn a_single_round_of_pieces_has_no_spread_and_no_tutorial() {
        let mut figures = figures();
        for (_, reports) in &mut figures.columns {
            reports.truncate(1);
        }
        let text = figures.markdown();
        assert!(
            !text.contains("off its median") && !text.contains("utorial"),
            "{text}"
        );
    }

    #[test]
    fn a_median_is_the_middle_value_or_between_the_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
