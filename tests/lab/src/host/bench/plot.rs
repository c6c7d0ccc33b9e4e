//! The table as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use benches::count::Count;
use benches::time::Time;
use plotters::prelude::*;

use crate::host::bench::ring::time_of;

/// Those of whom there is a bar, in this order; virtio would make all others look alike.
const SHOWN: [&str; 3] = ["ours", "C gcc", "C clang"];
const COLOURS: [RGBColor; 3] = [RGBColor(0x1f, 0x6f, 0xb4), RGBColor(0xb0, 0xb0, 0xb0), RGBColor(0x70, 0x70, 0x70)];

const GREEN: RGBColor = RGBColor(0x50, 0xa0, 0x50);

/// Draws instructions on the left and time on the right: a group of bars for each case.
pub(super) fn draw(path: &Path, counts: &[Count], times: &[Time]) -> Result<()> {
    drawn(path, counts, times).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn drawn(path: &Path, counts: &[Count], times: &[Time]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (1200, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(600);
    let instructions = |name: &str, shape: &str, batch| {
        let same = |count: &&Count| count.rival == name && count.shape == shape && count.batch == batch;
        counts.iter().find(same).map(|count| count.instructions)
    };
    bars(&left, "instructions a request", &instructions)?;
    let ratio = |name: &str, shape: &str, batch| {
        Some(time_of(times, name, shape, batch)? / time_of(times, "C clang", shape, batch)?)
    };
    bars(&right, "time, in that of C clang", &ratio)?;
    area.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn bars(
    area: &Area<'_>,
    title: &str,
    value: &dyn Fn(&str, &str, u32) -> Option<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let cases: Vec<(&str, u32)> =
        ["blk1", "blk11", "net_tx"].into_iter().flat_map(|shape| [1, 8, 32].map(|batch| (shape, batch))).collect();
    let all = || cases.iter().flat_map(|(shape, batch)| SHOWN.map(|name| value(name, shape, *batch)));
    let top = all().flatten().fold(0.0, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..cases.len() as f64, 0.0..top.max(1.0))?;
    let name_of = |place: &f64| {
        let case = cases.get(place.floor() as usize);
        case.map_or_else(String::new, |(shape, batch)| format!("{shape}/{batch}"))
    };
    chart.configure_mesh().disable_x_mesh().x_labels(cases.len()).x_label_formatter(&name_of).draw()?;
    for (place, (name, colour)) in SHOWN.into_iter().zip(COLOURS).enumerate() {
        let bar = |(case, (shape, batch)): (usize, &(&str, u32))| {
            let from = case as f64 + 0.1 + 0.27 * place as f64;
            let height = value(name, shape, *batch)?;
            Some(Rectangle::new([(from, 0.0), (from + 0.25, height)], colour.filled()))
        };
        let legend = move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled());
        chart.draw_series(cases.iter().enumerate().filter_map(bar))?.label(name).legend(legend);
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    Ok(())
}

/// Bars that belong together, each with its name.
pub(super) struct Bars<'a> {
    pub(super) title: &'a str,
    pub(super) bars: Vec<(&'a str, f64)>,
}

/// Draws groups of bars, one below the other.
pub(super) fn draw_groups(path: &Path, title: &str, groups: &[Bars<'_>]) -> Result<()> {
    groups_drawn(path, title, groups).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn groups_drawn(path: &Path, title: &str, groups: &[Bars<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    const LINE: i32 = 14;
    let lines: usize = groups.iter().map(|group| group.bars.len() + 1).sum();
    let area = SVGBackend::new(path, (900, 40 + LINE as u32 * lines as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |size| ("sans-serif", size).into_font();
    area.draw(&Text::new(title, (10, 8), text(18)))?;
    let top = groups.iter().flat_map(|group| &group.bars).map(|(_, value)| *value).fold(1.0, f64::max);
    let mut y = 36;
    for group in groups {
        area.draw(&Text::new(group.title, (10, y), text(13)))?;
        for (name, value) in &group.bars {
            let end = 440 + (value.max(0.0) / top * 380.0) as i32;
            let colour = if *name == "goal" { GREEN } else { COLOURS[0] };
            area.draw(&Text::new(*name, (300, y), text(12)))?;
            area.draw(&Rectangle::new([(440, y + 1), (end, y + LINE - 3)], colour.filled()))?;
            area.draw(&Text::new(format!("{value:.0}"), (end + 4, y), text(12)))?;
            y += LINE;
        }
        y += LINE;
    }
    area.present()?;
    Ok(())
}
