//! What is read when someone scrapes: filled by who has it, then written out.
//!
//! Called by the engine, which adds what it has, and by [`super::Metrics::render`].

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;

use super::catalogue::{Kind, Metric};

/// The labels of a series.
type Labels = Vec<(&'static str, String)>;

/// A number, or the place where something is counted.
#[derive(Debug, Clone)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Any number.
    Real(f64),
    /// A histogram that its owner goes on filling.
    Histogram(Histogram),
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Whole(n)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::Whole(n as u64)
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Whole(is.into())
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Self {
        Self::Real(n)
    }
}

impl From<&Histogram> for Value {
    fn from(histogram: &Histogram) -> Self {
        Self::Histogram(histogram.clone())
    }
}

/// A metric with its series.
#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    series: Vec<(Labels, Value)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Scraped {
    families: BTreeMap<&'static str, Family>,
}

impl Scraped {
    /// Adds a series, with the values of its metric's labels in their order.
    pub fn add<const N: usize>(
        &mut self,
        metric: &'static Metric,
        labels: [&str; N],
        value: impl Into<Value>,
    ) {
        debug_assert_eq!(metric.labels.len(), N, "{}", metric.name);
        let labels = metric.labels.iter().copied().zip(labels.map(str::to_owned)).collect();
        let new = || Family { metric, series: Vec::new() };
        self.families.entry(metric.name).or_insert_with(new).series.push((labels, value.into()));
    }
}

impl Collector for Scraped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Family { metric, series } in self.families.values() {
            // With the full stop that the registry gives its own.
            let help = format!("{}.", metric.help);
            let mut family = encoder.encode_descriptor(metric.name, &help, None, metric.kind.encoded())?;
            for (labels, value) in series {
                match labels.as_slice() {
                    [] => {
                        // A family of one, without labels.
                        write(metric.kind, value, family)?;
                        break;
                    }
                    labels => write(metric.kind, value, family.encode_family(&labels)?)?,
                }
            }
        }
        Ok(())
    }
}

fn write(kind: Kind, value: &Value, to: MetricEncoder<'_>) -> fmt::Result {
    match (kind, value) {
        (_, Value::Histogram(histogram)) => histogram.encode(to),
        (Kind::Counter, Value::Whole(n)) => ConstCounter::new(*n).encode(to),
        (Kind::Counter, Value::Real(n)) => ConstCounter::new(*n).encode(to),
        (_, Value::Whole(n)) => ConstGauge::new(*n).encode(to),
        (_, Value::Real(n)) => ConstGauge::new(*n).encode(to),
    }
}
