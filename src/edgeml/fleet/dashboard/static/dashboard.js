// Times that stay current, light and dark, the login, and the cells of the table of devices.
window.edgeml = (() => {
  "use strict";
  const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  const esc = (text) => String(text ?? "").replace(/[&<>"']/g, (c) => escapes[c]);

  // -- times -----------------------------------------------------------------------------------
  const spans = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  function since(at) {
    const passed = Math.max(0, Date.now() / 1000 + (window.edgemlNow || 0) - at);
    const [size, unit] = spans.find(([s]) => passed >= s) || [1, "s"];
    return `${Math.floor(passed / size)} ${unit}`;
  }
  function tell(time) {
    const passed = Date.now() / 1000 + (window.edgemlNow || 0) - time.dataset.at;
    const suffix = time.dataset.suffix || "";
    const text = passed < 3 && suffix ? "just now" : since(time.dataset.at) + suffix;
    if (time.textContent !== text) time.textContent = text;
  }
  const tellAll = () => document.querySelectorAll("time[data-at]").forEach(tell);
  function press(chip) { chip.setAttribute("aria-pressed", chip.dataset.filter === grid.filter); }
  // Runs before the next paint, so that nobody sees new HTML as the server sent it.
  new MutationObserver((changes) => {
    for (const change of changes)
      for (const node of change.addedNodes) {
        if (!node.querySelectorAll) continue;
        if (node.matches("time[data-at]")) tell(node);
        if (node.matches("[data-filter]")) press(node);
        node.querySelectorAll("time[data-at]").forEach(tell);
        node.querySelectorAll("[data-filter]").forEach(press);
      }
  }).observe(document.documentElement, { childList: true, subtree: true });
  setInterval(tellAll, 1000);

  // -- light and dark --------------------------------------------------------------------------
  const wanted = () => (document.cookie.match(/edgeml_theme=(light|dark)/) || [])[1];
  const systemDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  function early() {
    const dark = wanted() ? wanted() === "dark" : systemDark();
    document.body.classList.toggle("body--dark", dark);
  }
  function theme() {
    const next = document.body.classList.contains("body--dark") ? "light" : "dark";
    document.cookie = `edgeml_theme=${next}; path=/; max-age=31536000; samesite=strict`;
    if (window.Quasar) window.Quasar.Dark.set(next === "dark");
    else early();
  }

  // -- login -----------------------------------------------------------------------------------
  function login(form, wrong) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      wrong.textContent = "";
      const body = JSON.stringify({ user: form.user.value, password: form.password.value });
      const headers = { "content-type": "application/json" };
      try {
        const reply = await fetch("/api/v1/login", { method: "POST", headers, body });
        if (reply.ok) {
          const next = new URLSearchParams(location.search).get("next") || "/";
          location.replace(/^\/(?![/\\])/.test(next) ? next : "/");
          return;
        }
        wrong.textContent = (await reply.json()).detail;
      } catch {
        wrong.textContent = "the fleet cannot be reached";
      }
      form.password.select();
    });
  }

  // -- the table of devices --------------------------------------------------------------------
  const icon = (name) => `<svg class="i" aria-hidden="true"><use href="#i-${name}"/></svg>`;
  const look = {
    online: ["ok", "ok"], offline: ["off", "off"], ok: ["ok", "ok"], degraded: ["warn", "warn"],
    failing: ["bad", "bad"], unknown: ["off", "off"],
  };
  function state(params) {
    const [color, shape] = look[params.value] || ["off", "info"];
    return `<span class="st ${color}">${icon(shape)}${esc(params.value)}</span>`;
  }
  const device = (p) => `<a href="/devices/${encodeURIComponent(p.value)}">${esc(p.value)}</a>`;
  function model(p) {
    const d = p.data;
    if (!d.version && !d.desired) return '<span class="mute">nothing</span>';
    const runs = d.version ? `${esc(d.model)} <b>${esc(d.version)}</b>` : "";
    const to = d.desired && d.desired !== d.version
      ? ` <span class="busy">→ ${esc(d.desired)}</span>` : "";
    return runs + to;
  }
  const place = (p) =>
    `${esc(p.data.variant) || "–"} <span class="mute">${esc(p.data.placement)}</span>`;
  function phase(p) {
    if (!p.value || p.value === "idle") return `<span class="mute">${esc(p.value) || "–"}</span>`;
    const [done, all] = [p.data.done, p.data.all];
    const share = all ? ` ${Math.floor((100 * done) / all)} %` : "";
    return `<span class="st busy">${icon("busy")}${esc(p.value)}${share}</span>`;
  }
  const seen = (p) => (p.value
    ? `<time data-at="${Number(p.value)}" data-suffix=" ago">${since(p.value)} ago</time>`
    : '<span class="mute">never</span>');
  const num = (digits) => (p) =>
    p.value === null || p.value === undefined ? "–" : Number(p.value).toFixed(digits);

  const filters = {
    all: () => true,
    online: (d) => d.online === "online",
    offline: (d) => d.online === "offline",
    unwell: (d) => d.health === "degraded" || d.health === "failing",
    updating: (d) => Boolean(d.phase && d.phase !== "idle"),
  };
  const grid = {
    filter: "all",
    api: null,
    ready(params) { grid.api = params.api; },
    filtered: () => grid.filter !== "all",
    passes: (node) => filters[grid.filter](node.data),
    search(text) { grid.api?.setGridOption("quickFilterText", text); },
    show(name) {
      grid.filter = name;
      document.querySelectorAll("[data-filter]").forEach(press);
      grid.api?.onFilterChanged();
    },
    open(params) {
      if (params.event?.target.closest("a")) return;
      location.href = `/devices/${encodeURIComponent(params.data.device)}`;
    },
  };
  return { theme, early, login, grid, cells: { state, device, model, place, phase, seen, num } };
})();
