//! L-BFGS (Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5), for smooth convex functions of
//! some thousand variables.

use std::collections::VecDeque;

use tch::{TchError, Tensor};

use crate::Result;

/// How many past steps the curvature is told from.
const MEMORY: usize = 10;

/// How much of the decrease that the gradient promises a step has to bring (Armijo).
const SUFFICIENT_DECREASE: f64 = 1e-4;

/// A step and the change of the gradient along it.
struct Pair {
    step: Tensor,
    change: Tensor,
    curvature: f64,
}

/// Minimizes a function of a vector, which gives its value and gradient, from `start` on until no element of the
/// gradient is larger than `tolerance`. `None` after `iterations` without that.
pub(super) fn minimize(
    start: Tensor,
    tolerance: f64,
    iterations: usize,
    function: impl Fn(&Tensor) -> Result<(f64, Tensor)>,
) -> Result<Option<Tensor>> {
    let torch = crate::Error::torch;
    let mut point = start;
    let (mut value, mut gradient) = function(&point)?;
    let mut pairs = VecDeque::with_capacity(MEMORY);
    for _ in 0..iterations {
        if largest(&gradient).map_err(torch("L-BFGS"))? <= tolerance {
            return Ok(Some(point));
        }
        let direction = direction(&gradient, &pairs).map_err(torch("L-BFGS"))?;
        let slope = dot(&direction, &gradient).map_err(torch("L-BFGS"))?;
        let mut length = 1.;
        let (step, next) = loop {
            let step = direction.f_mul_scalar(length).map_err(torch("L-BFGS"))?;
            let next = function(&point.f_add(&step).map_err(torch("L-BFGS"))?)?;
            if next.0 <= value + SUFFICIENT_DECREASE * length * slope {
                break (step, next);
            }
            length /= 2.;
            if length < 1e-10 {
                // Not a number, or no smaller value within the precision.
                return Ok(None);
            }
        };
        let mut moved = || {
            point = point.f_add(&step)?;
            let change = next.1.f_sub(&gradient)?;
            let curvature = dot(&step, &change)?;
            Ok((change, curvature))
        };
        let (change, curvature) = moved().map_err(torch("L-BFGS"))?;
        if curvature > 0. {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair {
                step,
                change,
                curvature,
            });
        }
        (value, gradient) = next;
    }
    Ok(None)
}

/// Returns minus the gradient, multiplied by the inverse of the Hessian as the past steps tell it.
fn direction(gradient: &Tensor, pairs: &VecDeque<Pair>) -> Result<Tensor, TchError> {
    let mut direction = gradient.f_neg()?;
    let Some(last) = pairs.back() else {
        // Nothing is known yet: a step of length 1 at most.
        let norm = dot(gradient, gradient)?.sqrt();
        return direction.f_div_scalar(norm.max(1.));
    };
    let mut factors = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let factor = dot(&pair.step, &direction)? / pair.curvature;
        direction = direction.f_sub(&pair.change.f_mul_scalar(factor)?)?;
        factors.push(factor);
    }
    direction = direction.f_mul_scalar(last.curvature / dot(&last.change, &last.change)?)?;
    for (pair, factor) in pairs.iter().zip(factors.into_iter().rev()) {
        let factor = factor - dot(&pair.change, &direction)? / pair.curvature;
        direction = direction.f_add(&pair.step.f_mul_scalar(factor)?)?;
    }
    Ok(direction)
}

fn dot(a: &Tensor, b: &Tensor) -> Result<f64, TchError> {
    a.f_dot(b)?.f_double_value(&[])
}

fn largest(values: &Tensor) -> Result<f64, TchError> {
    values.f_abs()?.f_max()?.f_double_value(&[])
}
