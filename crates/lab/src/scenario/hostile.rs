//! Hostile clients and broken neighbours. Other clients must not notice them, and the picker must not draw wrong
//! conclusions from them. Each attack has a control that shows that it is one.

mod floods;
mod frames;
mod neighbours;
mod requests;
mod uploads;
mod wire;

use crate::check::{Check, Claim, Group};
use crate::scenario::lab::Lab;
use crate::scenario::part;

pub async fn run(lab: &Lab<'_>) {
    let group = Group::Hostile;
    part(lab, group, "bodies in tiny frames", frames::run).await;
    part(lab, group, "floods of frames", floods::run).await;
    part(lab, group, "uploads that never end", uploads::run).await;
    part(lab, group, "many headers", requests::many_headers).await;
    part(lab, group, "questions about pods", requests::nosy).await;
    part(lab, group, "odd bodies", requests::odd_bodies).await;
    part(lab, group, "blind pods", neighbours::blind_pods).await;
    part(lab, group, "files rewritten in place", neighbours::rewritten_files).await;
}

fn claim(name: &str, title: &str) -> Claim {
    Check::of(Group::Hostile, name, title)
}
