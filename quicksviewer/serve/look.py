"""How the page looks: colours, sizes, style sheet. No font and no picture comes from elsewhere."""

CSS = """
:root, .light { --qv-cube-0:#3b6ef5; --qv-cube-1:#f08a24; --qv-cube-2:#1fa971; --qv-cube-3:#d6457f;
  --qv-cube-4:#7a5af0; --qv-cube-5:#0e9fb8; --qv-gold:#e3b008; --qv-line:#e4e8ef; --qv-soft:#6a7485;
  --qv-card:#fff; --qv-ink:#18202d; }
.dark { --qv-line:#2b3442; --qv-soft:#97a3b5; --qv-card:#171d27; --qv-ink:#e8edf5; }
.gradio-container { max-width:1280px !important; margin:0 auto !important;
  padding:20px 24px 32px !important; }
footer, #video button[aria-label*="rim"] { display:none !important; }
.html-container { padding:0 !important; }
#times { min-height:22px; }
#tools { justify-content:flex-end; gap:8px; }
#tools button, #compare { flex:0 0 auto; min-width:120px; width:auto; font-size:14px; }
#compare { align-self:flex-end; height:44px; }
#chat .message { font-size:15px; }
.qv-head { display:flex; align-items:baseline; gap:14px; padding:4px 2px 10px; }
.qv-head h1 { font-size:26px; font-weight:700; letter-spacing:-.02em; margin:0; color:var(--qv-ink); }
.qv-head p { margin:0; color:var(--qv-soft); font-size:15px; }
.qv-head code { margin-left:auto; font-size:12.5px; color:var(--qv-soft); background:none; border:0; }
.qv-figures { display:grid; grid-template-columns:repeat(4,1fr); gap:10px; }
.qv-card { border:1px solid var(--qv-line); border-radius:12px; padding:12px 14px; background:var(--qv-card);
  display:flex; flex-direction:column; gap:1px; min-width:0; }
.qv-card > span { color:var(--qv-soft); font-size:12.5px; }
.qv-card > b { font-size:25px; font-weight:650; letter-spacing:-.02em; line-height:1.25; color:var(--qv-ink);
  font-variant-numeric:tabular-nums; }
.qv-card > i { font-style:normal; font-size:12px; color:var(--qv-soft); }
.qv-stages { list-style:none; margin:12px 0 0; padding:12px 14px; border:1px solid var(--qv-line);
  border-radius:12px; background:var(--qv-card); display:flex; flex-direction:column; gap:7px; }
.qv-stages:empty { display:none; }
.qv-stages li { display:grid; grid-template-columns:84px 1fr 66px; align-items:center; gap:10px; margin:0;
  font-size:13px; color:var(--qv-ink); }
.qv-stages li div { background:color-mix(in srgb, var(--qv-line) 55%, transparent);
  border-radius:5px; height:9px; }
.qv-stages li i { display:block; height:9px; border-radius:5px; background:var(--qv-cube-0); }
.qv-stages li b { text-align:right; font-weight:600; font-variant-numeric:tabular-nums; }
.qv-empty { border:1px dashed var(--qv-line); border-radius:14px; padding:34px 28px; text-align:center;
  color:var(--qv-soft); font-size:15px; }
.qv-empty b { color:var(--qv-ink); }
.qv-notice { border:1px solid #f3c0bb; background:#fef3f2; color:#8f1d14; border-radius:12px;
  padding:12px 16px; font-size:14.5px; }
.dark .qv-notice { background:#3a1613; border-color:#6b2620; color:#ffd5d1; }
.qv-strip, .qv-compare { border:1px solid var(--qv-line); border-radius:14px; padding:16px 18px;
  background:var(--qv-card); }
.qv-strip header { display:flex; align-items:center; justify-content:space-between; margin-bottom:10px; }
.qv-strip h3 { margin:0; font-size:15px; font-weight:650; color:var(--qv-ink); }
.qv-key { color:var(--qv-soft); font-size:12.5px; display:flex; align-items:center; gap:7px; }
.qv-mark { width:10px; height:10px; border-radius:3px; background:var(--qv-gold); display:inline-block;
  transform:rotate(45deg); }
.qv-line { display:grid; grid-template-columns:52px 1fr; align-items:center; gap:8px; margin-bottom:6px;
  font-size:12px; color:var(--qv-soft); }
.qv-blocks { display:flex; gap:2px; height:14px; }
.qv-blocks i { background:var(--c); border-radius:3px; min-width:1px; }
.qv-blocks .qv-thumbnail { flex:1 0 0; background:var(--qv-gold); }
.qv-read { margin:2px 0 0 60px; font-size:12.5px; color:var(--qv-soft); }
.qv-cubes { display:flex; flex-wrap:wrap; gap:10px; margin-top:14px; max-height:440px; overflow-y:auto; }
.qv-cube { margin:0; border-radius:10px; padding:6px 7px 7px; border-top:3px solid var(--c);
  background:color-mix(in srgb, var(--c) 9%, transparent); }
.qv-cube figcaption { font-size:11.5px; color:var(--qv-soft); padding:0 1px 4px; white-space:nowrap;
  font-variant-numeric:tabular-nums; }
.qv-cube figcaption b { color:var(--c); font-weight:700; margin-right:3px; }
.qv-cube figcaption em { font-style:normal; opacity:.8; margin-left:3px; }
.qv-cube > div { display:flex; flex-wrap:wrap; gap:4px; }
.qv-frame { position:relative; line-height:0; }
.qv-frame img { width:76px; height:76px; border-radius:6px; display:block; margin:0; }
.qv-open::after { content:""; position:absolute; left:6px; top:6px; width:9px; height:9px; border-radius:2px;
  background:var(--qv-gold); transform:rotate(45deg); box-shadow:0 0 0 1.5px rgba(255,255,255,.95); }
.qv-film { display:grid; grid-template-columns:110px 1fr; gap:8px 10px; align-items:center; }
.qv-heads { grid-column:2; display:flex; gap:2px; }
.qv-heads img { flex:1 1 0; min-width:0; aspect-ratio:1; max-height:64px; object-fit:cover; border-radius:3px;
  margin:0; }
.qv-method { font-size:13px; font-weight:600; text-align:right; color:var(--qv-ink); overflow-wrap:anywhere; }
.qv-film .qv-blocks { height:20px; }
.qv-facts { display:grid; grid-template-columns:1fr 1fr; gap:12px; margin:16px 0 0 0; }
.qv-facts ul { list-style:none; margin:4px 0 0; padding:0; }
.qv-facts li { margin:0; font-size:13px; color:var(--qv-soft); }
.qv-facts li b { color:var(--qv-ink); font-variant-numeric:tabular-nums; }
.qv-facts .qv-card > span { font-weight:650; color:var(--qv-ink); font-size:14px; }
.qv-facts blockquote { margin:10px 0 0; padding:8px 12px; border-left:3px solid var(--qv-cube-0);
  font-size:14px; white-space:pre-wrap; color:var(--qv-ink);
  background:color-mix(in srgb, var(--qv-line) 35%, transparent); }
.qv-times { font-size:12.5px; color:var(--qv-soft); padding:0 4px; min-height:18px; }
@media (max-width:760px) { .qv-figures { grid-template-columns:repeat(2,1fr); }
  .qv-head code { display:none; } .qv-head { flex-wrap:wrap; } .qv-facts { grid-template-columns:1fr; } }
"""

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")


def theme(gradio):
    """Gradio's plainest theme with the system's fonts and our colours."""
    base = gradio.themes.Base(
        primary_hue=gradio.themes.colors.blue,
        neutral_hue=gradio.themes.colors.slate,
        radius_size=gradio.themes.sizes.radius_lg,
        font=FONT,
        font_mono=MONO,
    )
    return base.set(
        body_background_fill="#f6f7f9",
        block_border_width="1px",
        block_border_color="#e4e8ef",
        block_shadow="none",
        block_radius="14px",
        button_primary_background_fill="#2f5bea",
        button_primary_background_fill_hover="#2449c4",
        button_primary_text_color="white",
    )
