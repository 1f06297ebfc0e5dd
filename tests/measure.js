function () {
  // Of the page as it is now: faults that a person would see.
  const seen = (e) => e.checkVisibility ? e.checkVisibility() : e.getClientRects().length > 0;
  const scrolls = (e) => {
    for (let at = e.parentElement; at; at = at.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)) return true;
    return false;
  };
  const page = document.documentElement.clientWidth;
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "title", "TITLE"].includes(parent.tagName) || !seen(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects())
      if (r.width > 0 && r.height > 0) texts.push({ text: node.data.trim().slice(0, 40), r, parent, svg: !!parent.closest("svg") });
  }
  texts.sort((a, b) => a.r.top - b.r.top);
  const overlaps = [];
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length && texts[j].r.top < texts[i].r.bottom; j++) {
      const a = texts[i].r, b = texts[j].r;
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left), y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1 && y > Math.min(a.height, b.height) * 0.35 && texts[i].parent !== texts[j].parent)
        overlaps.push(`"${texts[i].text}" and "${texts[j].text}" by ${x.toFixed(0)} x ${y.toFixed(0)} px`);
    }
  const wide = [];
  if (document.documentElement.scrollWidth > page + 1) wide.push(`the page: ${document.documentElement.scrollWidth} of ${page} px`);
  for (const e of document.body.querySelectorAll("*")) {
    const r = e.getBoundingClientRect();
    if (seen(e) && !e.closest("svg, div.wide") && !scrolls(e) && r.right > page + 1) wide.push(`${e.tagName}.${e.className}: ${r.right.toFixed(0)} of ${page} px`);
  }
  for (const t of texts)
    if (!scrolls(t.parent) && (t.r.right > page + 1 || t.r.left < -1)) wide.push(`text "${t.text}"`);
  const figures = [...document.querySelectorAll("figure")], empty = [], nameless = [];
  for (const figure of figures) {
    const drawn = [...figure.querySelectorAll("svg[role=img]")].filter(seen);
    if (drawn.length !== 1) empty.push(`${drawn.length} drawings are shown`);
    for (const svg of drawn) {
      const marks = svg.querySelectorAll(".data path, .data use, image");
      const box = svg.getBoundingClientRect();
      if (marks.length === 0 || box.width < 200 || box.height < 60) empty.push(`${svg.getAttribute("aria-label")}: ${marks.length} marks, ${box.width} x ${box.height} px`);
      if ((svg.getAttribute("aria-label") || "").length < 20) nameless.push(svg.outerHTML.slice(0, 80));
      if (svg.querySelector("text") === null) empty.push(`${svg.getAttribute("aria-label")}: no text`);
    }
    const section = figure.closest("section");
    if (!section || !section.querySelector("h2") || !section.querySelector("h2").textContent.trim()) nameless.push("a figure without a heading");
  }
  const small = texts.filter((t) => t.r.height < 8.5).map((t) => `"${t.text}" is ${t.r.height.toFixed(1)} px high`);
  return { overlaps, wide, empty, nameless, small, figures: figures.length, scripts: document.scripts.length, text: document.body.innerText };
}
