//! What Keras' `summary()` prints: layers, shapes, parameters.

use std::fmt;

use super::backbone::Backbone;
use super::layer::Variable;
use super::sequential::Sequential;
use crate::text::thousands;

/// A table of layers with totals; its `Display` is Keras' layout. Shapes are libtorch's
/// `[batch, channels, height, width]`.
#[derive(Clone, Debug)]
pub struct Summary {
    model: String,
    rows: Vec<Row>,
    /// Scalars in all variables.
    pub total: usize,
    /// Scalars in the variables that training changes.
    pub trainable: usize,
}

#[derive(Clone, Debug)]
struct Row {
    layer: String,
    shape: String,
    parameters: usize,
    connected_to: String,
}

impl Backbone {
    /// Returns the table of all layers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let rows = self.layers().iter().map(|layer| Row {
            layer: format!("{} ({})", layer.name(), layer.operation().class_name()),
            shape: shape(&layer.output_shape()),
            parameters: count(layer.variables()),
            connected_to: layer
                .inputs()
                .iter()
                .map(|&input| self.layers()[input].name())
                .collect::<Vec<_>>()
                .join(", "),
        });
        Summary::new(self.name(), rows.collect(), self.variables())
    }
}

impl<C> Sequential<C> {
    /// Returns the table of the base, as one row, and the layers on top.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut rows = vec![Row {
            layer: format!("{} (Model)", self.base().name()),
            shape: shape(&self.base().output_shape()),
            parameters: count(self.base().variables()),
            connected_to: String::new(),
        }];
        rows.extend(self.built().iter().map(|built| Row {
            layer: format!("{} ({})", built.layer.name(), built.layer.class_name()),
            shape: match &built.output_shape {
                Some(output) => shape(output),
                None => "does not fit".into(),
            },
            parameters: count(&built.variables),
            connected_to: String::new(),
        }));
        Summary::new("sequential".into(), rows, self.variables())
    }
}

impl Summary {
    fn new<'a>(
        model: String,
        rows: Vec<Row>,
        variables: impl Iterator<Item = &'a Variable>,
    ) -> Self {
        let (mut total, mut trainable) = (0, 0);
        for variable in variables {
            total += variable.count();
            trainable += if variable.is_trainable() {
                variable.count()
            } else {
                0
            };
        }
        Self {
            model,
            rows,
            total,
            trainable,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |cell: fn(&Row) -> &str, title: &str| {
            self.rows
                .iter()
                .map(|row| cell(row).len())
                .chain([title.len()])
                .max()
                .unwrap_or(0)
        };
        let layers = width(|row| &row.layer, "Layer (type)");
        let shapes = width(|row| &row.shape, "Output Shape");
        let connections = width(|row| &row.connected_to, "");
        let (title, connected_to) = (
            "Layer (type)",
            if connections > 0 { "Connected to" } else { "" },
        );
        let line = "_".repeat(layers + shapes + 14 + connections.max(connected_to.len()) + 2);
        writeln!(f, "Model: \"{}\"\n{line}", self.model)?;
        let head = format!(
            "{title:layers$}  {:shapes$}  {:>10}  {connected_to}",
            "Output Shape", "Param #"
        );
        writeln!(f, "{}\n{}", head.trim_end(), line.replace('_', "="))?;
        for row in &self.rows {
            let parameters = thousands(row.parameters);
            let Row {
                layer,
                shape,
                connected_to,
                ..
            } = row;
            let text =
                format!("{layer:layers$}  {shape:shapes$}  {parameters:>10}  {connected_to}");
            writeln!(f, "{}", text.trim_end())?;
        }
        writeln!(f, "{}", line.replace('_', "="))?;
        writeln!(f, "Total params: {}", thousands(self.total))?;
        writeln!(f, "Trainable params: {}", thousands(self.trainable))?;
        write!(
            f,
            "Non-trainable params: {}",
            thousands(self.total - self.trainable)
        )
    }
}

fn count<'a>(variables: impl IntoIterator<Item = &'a Variable>) -> usize {
    variables.into_iter().map(Variable::count).sum()
}

/// Formats a shape with Keras' `None` for the batch.
fn shape(dimensions: &[i64]) -> String {
    let sizes: Vec<String> = dimensions.iter().map(i64::to_string).collect();
    format!("[None, {}]", sizes.join(", "))
}
