//! placeholder
use crate::report::Report;
use anyhow::Result;
pub fn render(_report: &Report) -> Result<String> {
    Ok(String::new())
}
