-- Move an entry to the end, as one of the incarnation that is now. KEYS[2]: stream; ARGV[2]: group. `fields` false: it is there no more.
local function move(id, fields, current)
  if fields then
    local at = #fields + 1
    for i = 1, #fields, 2 do
      if fields[i] == 'i' then at = i end
    end
    fields[at], fields[at + 1] = 'i', current
    add(KEYS[2], unpack(fields))
  end
  redis.call('XACK', KEYS[2], ARGV[2], id)
  redis.call('XDEL', KEYS[2], id)
end
